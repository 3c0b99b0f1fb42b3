"""model.gguf: one file for llama.cpp and programs based on it, with integers in GGUF blocks.

The package `gguf`, which writes it, is only needed with `export.gguf=true`, so this package is imported only then.
"""
