"""Renders a table as HTML from templates."""

import hashlib
import html
import string

PAGE = string.Template("<html><head><title>$title</title></head><body><table>$rows</table></body></html>")
ROW = string.Template("<tr class='$style'>$cells</tr>")
CELL = string.Template("<td>$value</td>")


def handler(event, context):
    rows = []
    for y in range(40):
        cells = [CELL.substitute(value=html.escape(f"<{x} & {y} & {event['n']}>")) for x in range(12)]
        rows.append(ROW.substitute(style="odd" if y % 2 else "even", cells="".join(cells)))
    page = PAGE.substitute(title=html.escape(f"page {event['n']}"), rows="\n".join(rows))
    return {"bytes": len(page), "sha256": hashlib.sha256(page.encode()).hexdigest()}
