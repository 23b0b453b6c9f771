"""A client that holds no tensor and no file.

It needs neither torch nor transformers nor hivemind. Third-party packages: tokenizers, numpy, jinja2.
"""
