"""Sockets: addresses, blobs in motion, the HTTP pieces both sides share, the client of an axon, the event loop."""
