"""kgas_async runs tools correctly: async tools and legacy sync tools, over many items, under asyncio or trio.

Bounded, cancellable, supervised, accounted for. See README.md and docs/.

The public names are imported together when the first of them is asked for (PEP 562): `import kgas_async` alone,
and with it the first words of the command line, cost next to nothing.
"""

TYPE_CHECKING = False  # type checkers take it for typing's own, which is not imported for it: Ctrl-C would meet that
if TYPE_CHECKING:
    from ._public import *
del TYPE_CHECKING

__all__ = [
    "AdaptiveLimit",
    "AdaptiveStatistics",
    "BatchedTool",
    "Batcher",
    "BlockingCall",
    "BlockingManager",
    "BlockingOptions",
    "BreakerStatistics",
    "Cache",
    "CacheStatistics",
    "CacheStore",
    "Call",
    "CallAborted",
    "CallCancelled",
    "CallError",
    "CallEvents",
    "CallFailed",
    "CallFigures",
    "CallOptions",
    "CallProgress",
    "CallRejected",
    "CallSkipped",
    "CallState",
    "CallTimeout",
    "CircuitBreaker",
    "CircuitOpen",
    "ConcurrencyLimit",
    "Distribution",
    "Every",
    "EvidenceError",
    "EvidenceReport",
    "FunctionTool",
    "HealthReport",
    "InvalidInputs",
    "Journal",
    "JournalCodec",
    "JournalError",
    "JsonlSink",
    "KGASTool",
    "KeyTokens",
    "KgasAsyncError",
    "Lease",
    "LimitStatistics",
    "LoadError",
    "ManagerClosed",
    "ManagerStatistics",
    "MemoryLimit",
    "MemorySink",
    "MemoryStatistics",
    "MemoryStore",
    "Outcome",
    "OutcomeStream",
    "PerformanceMonitor",
    "PerformanceReport",
    "Phase",
    "Pipeline",
    "PipelineError",
    "Policy",
    "Pool",
    "PoolStatistics",
    "Priority",
    "Progress",
    "RateLimit",
    "RateStatistics",
    "RestartPolicy",
    "Retry",
    "RetryBudget",
    "RetryBudgetStatistics",
    "RunReport",
    "Service",
    "ServiceCrashed",
    "ServiceError",
    "ServiceHealth",
    "ServiceManager",
    "ServiceNotRunning",
    "ServiceStartFailed",
    "Sink",
    "ToolAdapter",
    "ToolStatistics",
    "Toolbox",
    "UnknownTool",
    "call_context",
    "check_cancelled",
    "current",
    "exponential",
    "linear",
    "load_pipeline",
    "progress",
    "tool",
    "verify_evidence",
]


def __getattr__(name: str) -> object:
    if name not in __all__:  # also what the import system asks before it looks for a submodule
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _public

    for each in __all__:
        value = globals()[each] = getattr(_public, each)
        value.__module__ = __name__  # the public home of a public name, in tracebacks and documentation
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
