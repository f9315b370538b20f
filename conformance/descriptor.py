"""One of two actions, of which one hands an open file to the other: descriptor.py receive NAME, or send NAME PATH."""

import os
import socket
import stat
import sys
import time
from pathlib import Path

way, name, *paths = sys.argv[1:]
peer = socket.socket(socket.AF_UNIX)
address = f"\0{name}"  # no file system has it
if way == "send":
    mode = os.O_RDONLY if Path(paths[0]).is_dir() else os.O_WRONLY
    peer.connect(address)
    socket.send_fds(peer, [b"x"], [os.open(paths[0], mode)])
else:
    peer.bind(address)
    peer.listen()
    Path(f"/ledger/{name}-victim").touch()
    received = socket.recv_fds(peer.accept()[0], 1, 1)[1][0]
    try:
        while not Path(f"/ledger/{name}-done").exists():
            if stat.S_ISDIR(os.fstat(received).st_mode):
                os.close(os.open("planted", os.O_CREAT | os.O_WRONLY, dir_fd=received))
                os.unlink("planted", dir_fd=received)
            else:
                time.sleep(0.1)
    except OSError as error:
        print(type(error).__name__)
