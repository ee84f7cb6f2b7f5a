"""The page on which one looks at answers: one HTML file that needs nothing else, with the video beside it."""

from vpgfast.page.content import Lane, Shown
from vpgfast.page.write import write_page

__all__ = ["Lane", "Shown", "write_page"]
