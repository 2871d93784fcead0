"""File operations in a tree of inputs, one line of result each: what a file system of files says, an action's must."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat

libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, work):
    try:
        result = work()
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(f"{name}: {result}")


def write(path, data, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def look(path):
    found = os.lstat(path)
    return oct(found.st_mode), found.st_size, found.st_uid == os.getuid(), found.st_nlink if not stat.S_ISDIR(found.st_mode) else "-"


def both(*results):
    return results[-1]


os.umask(0o022)
# What is there.
attempt("listing", lambda: sorted(os.listdir("in")))
attempt("looks", lambda: [look(f"in/{name}") for name in sorted(os.listdir("in"))])
attempt("content", lambda: read("in/file"))
attempt("link", lambda: (os.readlink("in/link"), read("in/link")))
attempt("absent", lambda: os.stat("in/absent"))
attempt("not a directory", lambda: os.stat("in/file/below"))
attempt("access", lambda: [os.access("in/file", how) for how in (os.R_OK, os.W_OK, os.X_OK)])
attempt("access program", lambda: [os.access("in/program", how) for how in (os.R_OK, os.W_OK, os.X_OK)])
attempt("name too long", lambda: os.stat("in/" + "n" * 256))
attempt("name just fits", lambda: both(write("in/" + "n" * 255, b"x"), os.unlink("in/" + "n" * 255)))
# Making.
attempt("create", lambda: (write("in/new", b"12345"), look("in/new"), read("in/new")))
attempt("exclusive", lambda: write("in/file", b"", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
attempt("directory", lambda: both(os.makedirs("in/a/b/c"), look("in/a/b")))
attempt("directory again", lambda: os.mkdir("in/sub"))
attempt("symlink", lambda: both(os.symlink("file", "in/new-link"), (os.readlink("in/new-link"), read("in/new-link"))))
attempt("hard link", lambda: both(os.link("in/file", "in/hard"), look("in/hard"), os.path.samefile("in/file", "in/hard")))
attempt("fifo", lambda: both(os.mkfifo("in/fifo"), look("in/fifo")))
attempt("device", lambda: os.mknod("in/device", stat.S_IFCHR | 0o600, os.makedev(1, 3)))


def bind():
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("in/socket")
        return stat.S_ISSOCK(os.lstat("in/socket").st_mode)


attempt("socket", bind)
# Changing.
attempt("write to a read-only input", lambda: write("in/sub/one", b"x", os.O_WRONLY | os.O_APPEND))
attempt("chmod", lambda: both(os.chmod("in/sub/one", 0o644), look("in/sub/one")))
attempt("append", lambda: (write("in/sub/one", b"more", os.O_WRONLY | os.O_APPEND), read("in/sub/one")))
attempt("truncate", lambda: both(os.truncate("in/sub/one", 2), read("in/sub/one")))
attempt("grow", lambda: both(os.truncate("in/sub/one", 5), read("in/sub/one")))
attempt("times", lambda: both(os.utime("in/sub/two", (1000, 2000)), os.stat("in/sub/two").st_mtime))
attempt("times of a directory", lambda: both(os.utime("in/sub", (1000, 2000)), os.stat("in/sub").st_mtime))
attempt("chmod of a directory", lambda: both(os.chmod("in/sub", 0o700), look("in/sub")))
attempt("chown", lambda: os.chown("in/file", 0, 0))
attempt("chown to oneself", lambda: os.chown("in/sub/two", os.getuid(), os.getgid()))
attempt("set-user-id", lambda: both(os.chmod("in/new", 0o4755), look("in/new")))
attempt("attribute", lambda: both(os.setxattr("in/new", "user.a", b"v"), os.getxattr("in/new", "user.a")))
attempt("attribute that is not there", lambda: os.getxattr("in/file", "user.none"))
attempt("attributes", lambda: os.listxattr("in/new"))


def shared_mapping():
    fd = os.open("in/sub/one", os.O_RDWR)
    with mmap.mmap(fd, 5) as m:
        m[0:5] = b"mmapd"
        m.flush()
    os.close(fd)
    return read("in/sub/one")


attempt("shared mapping", shared_mapping)


def private_mapping():
    with open("in/file", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as m:
        m[0:1] = b"X"
        return bytes(m[:4]), read("in/file")[:4]


attempt("private mapping", private_mapping)
attempt("ftruncate read-only", lambda: os.ftruncate(os.open("in/file", os.O_RDONLY), 0))


def nameless():
    fd = os.open("in", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"from nowhere")
    result = libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, b"in/appeared", 0x400)
    return result, read("in/appeared"), look("in/appeared")


attempt("nameless file", nameless)


def allocated():
    fd = os.open("in/allocated", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 10000)
    os.close(fd)
    return look("in/allocated")


attempt("allocated", allocated)


def locked():
    one, two = os.open("in/file", os.O_RDONLY), os.open("in/file", os.O_RDONLY)
    fcntl.flock(one, fcntl.LOCK_EX)
    try:
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    return "not held"


attempt("lock", locked)
# Moving.
attempt("rename", lambda: both(os.rename("in/new", "in/newer"), os.path.exists("in/new"), read("in/newer")))
attempt("rename an input", lambda: both(os.rename("in/moved", "in/a/moved"), read("in/a/moved"), os.path.exists("in/moved")))
attempt("rename over an input", lambda: both(os.rename("in/newer", "in/over"), read("in/over")))
attempt("rename a made directory", lambda: both(os.rename("in/a", "in/z"), sorted(os.listdir("in/z"))))
attempt("move an input directory", lambda: both(shutil.move("in/tree", "in/forest"), sorted(os.listdir("in/forest")), os.path.exists("in/tree")))
attempt("rename onto a full directory", lambda: os.rename("in/z/b", "in/forest"))
attempt("rename a directory into itself", lambda: os.rename("in/z", "in/z/b/z"))
attempt("rename what is not there", lambda: os.rename("in/absent", "in/present"))
# Removing.
attempt("unlink an input", lambda: both(os.unlink("in/gone"), os.path.exists("in/gone"), "gone" in os.listdir("in")))
attempt("make it again", lambda: (write("in/gone", b"back"), read("in/gone"), look("in/gone")))
attempt("unlink a directory", lambda: os.unlink("in/sub"))
attempt("rmdir a full directory", lambda: os.rmdir("in/sub"))
attempt("rmdir a file", lambda: os.rmdir("in/file"))
attempt("rmdir emptied", lambda: both([os.unlink(f"in/sub/{n}") for n in os.listdir("in/sub")], os.rmdir("in/sub"), os.path.exists("in/sub")))
attempt("a file in its place", lambda: (write("in/sub", b"flat"), look("in/sub")))
attempt("rmtree and again", lambda: both(shutil.rmtree("in/forest"), os.mkdir("in/forest"), os.listdir("in/forest")))


def read_after_unlink():
    with open("in/late", "rb") as file:
        os.unlink("in/late")
        return file.read()


attempt("read after unlink", read_after_unlink)
# Many.
for n in range(3000):
    write(f"in/many/new-{n:04}", b"")
attempt("large directory", lambda: (len(os.listdir("in/many")), len(set(os.listdir("in/many")))))


def remove_while_listing():
    with os.scandir("in/many") as entries:
        for entry in entries:
            os.unlink(entry.path)
    return os.listdir("in/many")


attempt("remove while listing", remove_while_listing)
attempt("in the end", lambda: sorted(os.listdir("in")))
