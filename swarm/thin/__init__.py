"""A client that holds no tensor and no file, and needs neither torch nor transformers nor hivemind. (doors: tokenizers, numpy, jinja2)"""
