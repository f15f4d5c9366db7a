"""The system calls that no program of a contest needs, as a filter for bubblewrap.

A list of what is refused, not of what is allowed: a missing name costs one layer of several, a missing name in a list
of allowed ones would cost right programs their verdict. Refused are ways out of the namespaces, ways to other
processes of the same uid (the fork server among them), and what would outlive a test.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile

from core_model.errors import InputError

CLONE_NEW_FLAGS = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# F_GETLK, F_SETLK, F_SETLKW, their OFD kin, F_SETLEASE: a lock on a file of the system's is seen in other sandboxes.
LOCK_COMMANDS = (5, 6, 7, 36, 37, 38, 1024)

_REFUSED = """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp move_pages
    migrate_pages mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root
    chroot unshare setns name_to_handle_at open_by_handle_at bpf perf_event_open userfaultfd fanotify_init
    add_key request_key keyctl shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv
    msgctl mq_open mq_unlink init_module finit_module delete_module kexec_load kexec_file_load reboot swapon
    swapoff settimeofday clock_settime clock_adjtime adjtimex acct quotactl quotactl_fd syslog vhangup iopl
    ioperm modify_ldt setpriority ioprio_set sched_setscheduler sched_setparam sched_setattr flock
"""
REFUSED = _REFUSED.split()
ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")  # glibc falls back from clone3 to clone
OWN_PROCESS_ONLY = ("prlimit64", "sched_setaffinity")  # their first argument, 0, means the caller


def compile_filter() -> bytes:
    """The filter as BPF instructions.

    Raises:
        InputError: pyseccomp or libseccomp is not there.
    """
    try:
        import pyseccomp as libseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError("seccomp", expected="pyseccomp and libseccomp2", found=str(error)) from error
    allow, refuse = libseccomp.ALLOW, libseccomp.ERRNO(errno.EPERM)
    rules = libseccomp.SyscallFilter(defaction=allow)

    def arg(place: int, value: int, mask: int | None = None) -> object:
        if mask is None:
            return libseccomp.Arg(place, libseccomp.NE, value)
        return libseccomp.Arg(place, libseccomp.MASKED_EQ, mask, value)

    for name in REFUSED:
        if libseccomp.resolve_syscall(libseccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(refuse, name)
    for name in ABSENT:
        if libseccomp.resolve_syscall(libseccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(libseccomp.ERRNO(errno.ENOSYS), name)
    for name in OWN_PROCESS_ONLY:
        rules.add_rule(refuse, name, arg(0, 0))
    for flag in CLONE_NEW_FLAGS:
        rules.add_rule(refuse, "clone", arg(0, flag, flag))
    rules.add_rule(refuse, "socket", arg(0, int(socket.AF_UNIX)))
    for request in (TIOCSTI, TIOCLINUX):
        rules.add_rule(refuse, "ioctl", arg(1, request, 0xFFFFFFFF))
    for command in LOCK_COMMANDS:
        rules.add_rule(refuse, "fcntl", arg(1, command, 0xFFFFFFFF))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.flush()
        return os.pread(file.fileno(), 1 << 20, 0)
