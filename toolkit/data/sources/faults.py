"""Which errors of reading are the fault of the image, and not of the storage."""

import errno

# None: a remote object that no longer exists
FAULTS_OF_FILES = frozenset(
    {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
)
