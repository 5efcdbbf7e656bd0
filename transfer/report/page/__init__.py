"""The HTML page: what its template (page.html.j2, page.css, page.js) is filled with."""
