"""A page that shows moments beside the video: one HTML file that needs no network.

    write_page(Path("moments.html"), Content("holiday", [Video("holiday", 20.0, lanes, path=Path("holiday.mp4"))]))

The same page is what :mod:`vpgfast.serve` serves.
"""

from vpgfast.page.content import Content, Lane, Span, Video
from vpgfast.page.write import page_html, write_page

__all__ = ["Content", "Lane", "Span", "Video", "page_html", "write_page"]
