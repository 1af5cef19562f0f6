"""What a run shows: plain lines, a live console, a feed for other processes. It reads records and decides nothing."""
