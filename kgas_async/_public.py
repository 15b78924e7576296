"""All public names, gathered: what `kgas_async` gives out when the first of them is asked for.

Each is imported under its own name by ``as``, which says to type checkers that it is passed on.
"""

from ._adapter import ToolAdapter as ToolAdapter
from ._adaptive import AdaptiveLimit as AdaptiveLimit, AdaptiveStatistics as AdaptiveStatistics
from ._admission import LimitStatistics as LimitStatistics
from ._batcher import BatchedTool as BatchedTool, Batcher as Batcher
from ._blocking import (
    BlockingCall as BlockingCall,
    BlockingManager as BlockingManager,
    BlockingOptions as BlockingOptions,
)
from ._breaker import BreakerStatistics as BreakerStatistics, CircuitBreaker as CircuitBreaker
from ._budget import RetryBudget as RetryBudget, RetryBudgetStatistics as RetryBudgetStatistics
from ._cache import (
    Cache as Cache,
    CacheStatistics as CacheStatistics,
    CacheStore as CacheStore,
    MemoryStore as MemoryStore,
)
from ._call import Call as Call
from ._context import check_cancelled as check_cancelled, progress as progress
from ._door import current as current, open_door
from ._errors import (
    CallAborted as CallAborted,
    CallCancelled as CallCancelled,
    CallError as CallError,
    CallFailed as CallFailed,
    CallRejected as CallRejected,
    CallSkipped as CallSkipped,
    CallTimeout as CallTimeout,
    CircuitOpen as CircuitOpen,
    EvidenceError as EvidenceError,
    InvalidInputs as InvalidInputs,
    JournalError as JournalError,
    KgasAsyncError as KgasAsyncError,
    LoadError as LoadError,
    ManagerClosed as ManagerClosed,
    PipelineError as PipelineError,
    ServiceCrashed as ServiceCrashed,
    ServiceError as ServiceError,
    ServiceNotRunning as ServiceNotRunning,
    ServiceStartFailed as ServiceStartFailed,
    UnknownTool as UnknownTool,
)
from ._events import CallEvents as CallEvents, CallProgress as CallProgress, CallState as CallState
from ._every import Every as Every
from ._evidence import Sink as Sink
from ._evidence_sinks import MemorySink as MemorySink, call_context as call_context
from ._figures import CallFigures as CallFigures, PerformanceReport as PerformanceReport
from ._function_tool import FunctionTool as FunctionTool, tool as tool
from ._health import HealthReport as HealthReport, ServiceHealth as ServiceHealth
from ._journal import Journal as Journal
from ._journal_codec import JournalCodec as JournalCodec
from ._jsonl import JsonlSink as JsonlSink
from ._limits import ConcurrencyLimit as ConcurrencyLimit, KeyTokens as KeyTokens
from ._manager import ServiceManager as ServiceManager
from ._memory_limit import MemoryLimit as MemoryLimit, MemoryStatistics as MemoryStatistics
from ._metrics import Distribution as Distribution
from ._monitor import PerformanceMonitor as PerformanceMonitor
from ._options import CallOptions as CallOptions
from ._outcome import Outcome as Outcome
from ._phase import Phase as Phase
from ._pipeline import Pipeline as Pipeline
from ._pipeline_file import load_pipeline as load_pipeline
from ._policy import Policy as Policy
from ._pool import Lease as Lease, Pool as Pool
from ._pool_core import PoolStatistics as PoolStatistics
from ._priority import Priority as Priority
from ._rate import RateLimit as RateLimit, RateStatistics as RateStatistics
from ._report import (
    ManagerStatistics as ManagerStatistics,
    Progress as Progress,
    RunReport as RunReport,
    ToolStatistics as ToolStatistics,
)
from ._resilience import Retry as Retry, exponential as exponential, linear as linear
from ._restart import RestartPolicy as RestartPolicy
from ._service import Service as Service
from ._stream import OutcomeStream as OutcomeStream
from ._tool import KGASTool as KGASTool, Toolbox as Toolbox
from ._verify import EvidenceReport as EvidenceReport, verify_evidence as verify_evidence

open_door()
