"""What a run shows of itself: plain lines, or a live console. It reads rows; it decides nothing."""
