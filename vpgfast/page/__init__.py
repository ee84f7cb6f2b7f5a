"""A page that shows moments beside the video: one HTML file that needs no network.

    content = Content("holiday", [Video("holiday", 20.0, lanes, path=Path("holiday.mp4"))])  # vpgfast.page.content
    write_page(Path("moments.html"), content)  # vpgfast.page.write

The same page is what :mod:`vpgfast.serve` serves. Nothing is imported here, so that command lines stay light.
"""
