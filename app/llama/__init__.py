"""The llama.cpp engine: many requests decoded together over one GGUF, through llama.cpp's C API.

A request goes `template` → `tokenizer` → `admission` → `engine` (the step loop: `model`, `sampling`) → `text`.
`source` finds the file, `probe` tries the build on it before a replica depends on it.
"""
