"""A second process: made natively, refused in a sandbox with an OSError and at once."""

import multiprocessing
import os
import subprocess
import sys


def attempt(name, call):
    try:
        call()
    except OSError as error:
        print(name, "refused:", type(error).__name__, os.strerror(error.errno))
    else:
        print(name, "made")


def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def spawn():
    os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-Ic", ""], {}), 0)


def forked():
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()


attempt("fork", fork)
attempt("subprocess.run", lambda: subprocess.run([sys.executable, "-Ic", ""], check=True))
attempt("subprocess.Popen with a pipe", lambda: subprocess.Popen([sys.executable, "-Ic", ""], stdout=subprocess.PIPE).communicate())
attempt("os.posix_spawn", spawn)
attempt("multiprocessing", forked)
print("children left:", multiprocessing.active_children() == [])
