"""Runs the tests of a problem on a program: the program is on standard input, the definitions of the prompt on standard output
if the tests use any, and the parent on standard error, which sends the work and gets the verdict."""

import sys
import types


def global_names(code):
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return names


def imported(prompt, wanted):
    """What the import statements of a prompt give; its last function may have no body yet."""
    import ast
    given = {}
    for text in (prompt, prompt.rstrip() + '\n    pass'):
        try:
            statements = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError):
            continue
        for statement in statements:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                try:
                    exec(compile(ast.Module([statement], []), 'prompt.py', 'exec'), given)
                except Exception:
                    pass  # The tests fail if they need it.
        break
    return {name: given[name] for name in wanted if name in given}


def load(link, source, wanted):
    """Has the other side of a line run a source, and returns the names that are wanted and defined there."""
    link.ask({'load': source})
    theirs = link.ask({'names': wanted})
    return {name: theirs[name] for name in wanted if name in theirs}


def judge(work, links):
    """Raises if the tests fail."""
    entry = work['entry_point']
    code = compile(f"{work['test']}\n\ncheck({entry})\n", 'tests.py', 'exec')
    wanted = sorted(name for name in global_names(code) if not hasattr(builtins, name))
    names = load(links[0], work['program'], [*wanted, entry])
    if entry not in names:
        raise NameError(f'name {entry!r} is not defined')
    function = names[entry]
    if work['definitions']:
        names.update(load(links[1], work['definitions'], wanted))
    names.update(imported(work['prompt'], wanted))
    exec(code, {**names, entry: function, '__name__': '__main__'})


def main():
    parent = take(2)
    with os.fdopen(os.dup(parent), 'rb') as reader:
        work = json.loads(reader.readline())
    verdict = {'passed': False, 'error': ''}
    try:
        links = [Link(take(descriptor), False) for descriptor in ((0, 1) if work['definitions'] else (0,))]
        for link in links:
            link.ask({'names': []})
        os.write(parent, b'started\n')
        judge(work, links)
        verdict = {'passed': True, 'error': ''}
    except Ended as end:
        verdict['error'] = str(end)
    except BaseException as error:
        verdict['error'] = last_line(error)
    os.write(parent, json.dumps({**verdict, 'error': verdict['error'][-4096:]}).encode() + b'\n')


if __name__ == '__main__':
    if sys.platform == 'linux' and sys.argv[1] == 'limits':
        import ctypes
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: nobody else may look into this memory.
    limit(*map(int, sys.argv[2:]))
    main()
