"""Runs that live in an object store: --output-dir s3://..., gs://..., az://...

Such a run has a local directory, like any other, which everything else reads and writes; only this part knows the URL.
`place.py` owns where a run lives: it brings a run here before it starts and settles it there before it ends. `pull.py`
fetches, `push.py` sends, `uploader.py` does that in the background, `writer.py` keeps two machines apart, `layout.py`
names the objects, `copies.py` fetches what other commands read of a run. Never: a question about URLs outside of it.
"""
