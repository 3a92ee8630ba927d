"""One engine for many people: the service, the page and its API, and the web server around them.

`limits` bounds what a request, a client and all of them may cost; `gate` refuses everything else
before it costs anything. Bad requests are answered with 4xx and a sentence.
"""
