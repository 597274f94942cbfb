"""The sections of ``on_gpu.py``, a module each."""
