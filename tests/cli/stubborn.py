"""A child that does not end when asked, and says when it is ready."""

import signal
import sys
import time

signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.stderr.write("last words\n")
sys.stdout.write("ready\n")
sys.stdout.flush()
time.sleep(60)
