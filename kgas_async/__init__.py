"""kgas_async runs tools correctly: async tools and legacy sync tools, over many items, under asyncio or trio.

Bounded, cancellable, supervised, accounted for. See README.md and docs/.
"""

from ._adapter import ToolAdapter
from ._adaptive import AdaptiveLimit, AdaptiveStatistics
from ._admission import LimitStatistics
from ._batcher import BatchedTool, Batcher
from ._blocking import BlockingCall, BlockingManager, BlockingOptions
from ._breaker import BreakerStatistics, CircuitBreaker
from ._budget import RetryBudget, RetryBudgetStatistics
from ._cache import Cache, CacheStatistics, CacheStore, MemoryStore
from ._call import Call
from ._context import check_cancelled, progress
from ._door import current, open_door
from ._errors import (
    CallAborted,
    CallCancelled,
    CallError,
    CallFailed,
    CallRejected,
    CallSkipped,
    CallTimeout,
    CircuitOpen,
    EvidenceError,
    InvalidInputs,
    JournalError,
    KgasAsyncError,
    LoadError,
    ManagerClosed,
    PipelineError,
    ServiceCrashed,
    ServiceError,
    ServiceNotRunning,
    ServiceStartFailed,
    UnknownTool,
)
from ._events import CallEvents, CallProgress, CallState
from ._every import Every
from ._evidence import Sink
from ._evidence_sinks import MemorySink, call_context
from ._figures import CallFigures, PerformanceReport
from ._function_tool import FunctionTool, tool
from ._health import HealthReport, ServiceHealth
from ._journal import Journal
from ._journal_codec import JournalCodec
from ._jsonl import JsonlSink
from ._limits import ConcurrencyLimit, KeyTokens
from ._manager import ServiceManager
from ._memory_limit import MemoryLimit, MemoryStatistics
from ._metrics import Distribution
from ._monitor import PerformanceMonitor
from ._options import CallOptions
from ._outcome import Outcome
from ._phase import Phase
from ._pipeline import Pipeline
from ._pipeline_file import load_pipeline
from ._policy import Policy
from ._pool import Lease, Pool
from ._pool_core import PoolStatistics
from ._priority import Priority
from ._rate import RateLimit, RateStatistics
from ._report import ManagerStatistics, Progress, RunReport, ToolStatistics
from ._resilience import Retry, exponential, linear
from ._restart import RestartPolicy
from ._service import Service
from ._stream import OutcomeStream
from ._tool import KGASTool, Toolbox
from ._verify import EvidenceReport, verify_evidence

open_door()

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

for _public in [globals()[name] for name in __all__]:
    _public.__module__ = __name__  # the public home of a public name, in tracebacks and documentation
del open_door
