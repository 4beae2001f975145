"""LlamaIndex's ingestion as its documentation shows it, in an environment of its own. Started by benchmarks/ingest.py.

    python ingest_peer.py FOLDER MODEL_FOLDER

Read a folder, cut, embed, keep in its default store. Chunks are set to 128 tokens with 12 shared, which is about as
long as ours; all else is the default. Prints one JSON object; what is imported and loaded before is not counted.
"""

import json
import sys
import time

from llama_index.core import SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

folder, model = sys.argv[1:]
embedding = HuggingFaceEmbedding(model_name=model)
embedding.get_text_embedding("warm")
began = time.perf_counter()
documents = SimpleDirectoryReader(folder).load_data()
splitter = SentenceSplitter(chunk_size=128, chunk_overlap=12, include_metadata=False)
nodes = IngestionPipeline(transformations=[splitter, embedding]).run(documents=documents)
VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(), embed_model=embedding)
seconds = time.perf_counter() - began
chars = sum(len(node.get_content()) for node in nodes)
print(json.dumps({"documents": len(documents), "texts": len(nodes), "chars": chars, "seconds": seconds}))
