"""The ops as a kernel of Hugging Face's hub; what is laid out, and from where, says `layout.py`."""
