"""Runs what a model wrote, and answers the judge: the judge is on standard input."""

import sys


def drop_capabilities():
    """Root without capabilities may not look into the judge's memory."""
    import ctypes
    library = ctypes.CDLL(None)
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for capability in range(64):
        library.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    library.capset(header, (ctypes.c_uint32 * 6)())


def serve(link):
    names = {'__name__': '__main__'}
    try:
        while True:
            question = link.receive()
            if 'load' in question:
                try:
                    exec(compile(question['load'], 'program.py', 'exec'), names)
                except Exception as error:
                    link.send(described(error))
                else:
                    link.send({'value': True})
            elif 'names' in question:
                found = [name for name in question['names'] if name in names]
                link.send({'value': {'dict': [[name, link.encode(names[name])] for name in found]}})
            else:
                link.answer(question)
    except SystemExit as end:
        link.send({'ended': end.code if isinstance(end.code, str) else ''})
        raise
    except Ended:
        pass


if __name__ == '__main__':
    if sys.argv[1] != 'limits':
        os.setsid()  # Or the process that has made the namespaces would be of its group, and could be killed from inside.
    if sys.platform == 'linux' and sys.argv[1] != 'container' and os.geteuid() == 0:
        drop_capabilities()
    limit(*map(int, sys.argv[2:]))
    sys.argv = ['program']
    serve(Link(take(0), True))
