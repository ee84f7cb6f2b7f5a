"""vpgfast: fast video grounding in PyTorch. When does each sentence happen in a video?"""

__version__ = "0.1.0"
