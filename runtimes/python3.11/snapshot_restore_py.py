"""Hooks around a snapshot, with the interface of AWS's module of this name.

A function registers what must happen before its state is frozen (close what cannot be restored) and after it has been
restored (open it again, draw new unique values):

    from snapshot_restore_py import register_before_snapshot, register_after_restore

    @register_after_restore
    def reconnect():
        ...

Hooks before a snapshot run in the reverse order of their registration, hooks after a restore in that order. Where the
sandbox has no snapshots, neither run.
"""

__all__ = ["register_before_snapshot", "register_after_restore"]

_before_snapshot = []
_after_restore = []


def register_before_snapshot(func, *args, **kwargs):
    """Has `func(*args, **kwargs)` called before the snapshot is taken. Returns `func`, so it works as a decorator."""
    _before_snapshot.append((func, args, kwargs))
    return func


def register_after_restore(func, *args, **kwargs):
    """Has `func(*args, **kwargs)` called after each restore. Returns `func`, so it works as a decorator."""
    _after_restore.append((func, args, kwargs))
    return func


def get_before_snapshot():
    """The hooks before a snapshot, in the order of their registration. For the runtime."""
    return _before_snapshot


def get_after_restore():
    """The hooks after a restore, in the order of their registration. For the runtime."""
    return _after_restore
