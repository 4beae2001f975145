"""The request graph: the only place that says who talks to whom. serve_config.yaml names `deployments.graph:build`.

    clients ── Gateway ──┬── LlamaCpp, or Vllm where llm.engine says so
                         ├── Retriever ──┬── Embedder
                         ├── Librarian ──┘ (through Retriever)
                         ├── Embedder    ├── VectorStore, or a Qdrant server by URL
                         │               ├── Reranker, where rag.rerank names one
                         └── Tools ──────┘ (through Retriever), where tools.enabled is set

    Trainer: nobody waits for it. It works on training runs that stand in PostgreSQL, as Ray jobs.

Behaviour comes from `args:`, placement (replicas, CPUs, GPUs, queue bounds) from `deployments:` of the YAML.
"""

from pathlib import Path

from ray import serve
from ray.serve import Application

from app.settings import AnyLLMSettings, RagSettings, Secrets, Settings, ToolSettings, home
from app.vllm.settings import VllmSettings
from deployments.embedder import Embedder
from deployments.gateway import Gateway
from deployments.librarian import Librarian
from deployments.llama_cpp import LlamaCpp
from deployments.observed import observed
from deployments.reranker import Reranker
from deployments.retriever import Retriever
from deployments.tools import Tools
from deployments.trainer import Trainer
from deployments.vector_store import VectorStore
from deployments.vllm import Vllm

GRACE_S = 50.0  # that answers may still take when their replica is to end; Serve waits for 60


def build(settings: Settings) -> Application:
    """Bind the graph. Secrets are read here and in the replicas, and never stand in the YAML."""
    folder, secrets = home(), Secrets.from_env()
    model = _llm(settings.llm, folder)
    embedder = serve.deployment(observed(Embedder)).bind(settings.embedding, folder)
    vectors = secrets.qdrant_url or serve.deployment(observed(VectorStore)).bind(folder)
    reranker = _reranker(settings.rag.rerank) if settings.rag.rerank else None
    retriever = serve.deployment(observed(Retriever)).bind(embedder, vectors, reranker, settings.rag.rerank_candidates)
    library = observed(Librarian, "librarian", database=True)
    librarian = serve.deployment(library).bind(retriever, settings.documents, folder)
    training = observed(Trainer, database=True)
    trainer = serve.deployment(training).options(ray_actor_options={"num_cpus": 0}).bind(settings, folder)
    entrance = serve.ingress()(observed(Gateway, database=True))
    gateway = serve.deployment(entrance).options(graceful_shutdown_timeout_s=GRACE_S)
    tools = _tools(retriever, settings.tools, settings.rag, folder) if settings.tools.enabled else None
    return gateway.bind(model, embedder, retriever, librarian, settings, folder, tools, trainer=trainer)


def _llm(settings: AnyLLMSettings, folder: Path) -> Application:
    """The engine that is chosen. Gateways call both alike, and do not know which it is."""
    part = Vllm if isinstance(settings, VllmSettings) else LlamaCpp
    llm = serve.deployment(observed(part, "engine", database=True)).options(graceful_shutdown_timeout_s=GRACE_S)
    if isinstance(settings, VllmSettings) and settings.prefix_routing:
        from deployments.routing import by_prefix  # three seconds of Ray's own imports, for those who need it

        llm = llm.options(request_router_config=by_prefix())
    return llm.bind(settings, folder, follow=True)


def _tools(retriever: Application, settings: ToolSettings, rag: RagSettings, folder: Path) -> Application:
    """Reserves no CPU either: it waits for others most of the time."""
    part = observed(Tools, database=True)
    placed = serve.deployment(part).options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=128)
    return placed.bind(retriever, settings, rag, folder)


def _reranker(model: str) -> Application:
    """Reserves no CPU, because the YAML that has no block for it may have given all of them away."""
    placed = serve.deployment(observed(Reranker)).options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=64)
    return placed.bind(model)
