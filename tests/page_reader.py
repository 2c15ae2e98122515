"""Read a run's page as a browser does: its scripts, its data, its text."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """The scripts of a page, the data in it, its headings, links and whatever it would load."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.scripts, self.headings, self.notes, self.loaded, self.links = [], [], [], [], []
        self.text, self._open = "", ""
        self.feed(self.source)
        (content,) = (text for kind, text in self.scripts if kind == "application/json")
        self.data = json.loads(content)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._open = tag
        if tag == "script":
            self.scripts.append([attributes.get("type", ""), ""])
        if tag in ("h1", "h2"):
            self.headings.append("")
        if attributes.get("class") == "note":
            self._open = "note"
            self.notes.append("")
        self.loaded += [attributes[name] for name in ("src", "srcset") if name in attributes]
        self.links += [attributes["href"]] if "href" in attributes else []

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1][1] += data
        elif self._open != "style":
            self.text += data
        if self._open in ("h1", "h2"):
            self.headings[-1] += data
        if self._open == "note":
            self.notes[-1] += data
