"""The Tinker API: connection, token ids on the wire, prices, and what a checkpoint is on the server."""
