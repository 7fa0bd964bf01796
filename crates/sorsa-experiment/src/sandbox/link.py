"""The line between the judge, which runs the tests, and a program, which runs what a model wrote.

Each message is a line of JSON. Plain values cross by copy; a function or an object of the program crosses as a number that
stands for it. So the judge never runs code, or holds an object, that the program has made.
"""

import builtins
import collections
import importlib
import json
import os
import resource

LONGEST_MESSAGE = 1 << 26
LONGEST_ITERATOR = 1 << 20


def limit(seconds, memory, processes):
    """Sets limits that cannot be raised again."""
    limits = {'CPU': seconds + 1, 'AS': memory, 'FSIZE': 1 << 22, 'NOFILE': 64, 'CORE': 0}
    if processes:
        limits['NPROC'] = processes
    for name, value in limits.items():
        kind = getattr(resource, 'RLIMIT_' + name, None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            pass  # macOS has no limit of the address space.


def take(descriptor):
    """The descriptor under another number; the old number reads nothing and drops what is written."""
    taken = os.dup(descriptor)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
    return taken


class Ended(BaseException):
    """The program is no longer there, or will not answer any more."""


class Remote:
    """An object of the other side. It can be called, and has methods; it is equal to itself alone."""

    def __init__(self, link, number):
        self._link, self._number = link, number

    def __call__(self, *arguments, **keywords):
        return self._link.call(self._number, arguments, keywords)

    def __getattr__(self, name):
        if name.startswith('_'):
            raise AttributeError(name)
        return self._link.ask({'attribute': name, 'of': self._number})


class Link:
    """One end of the line."""

    def __init__(self, descriptor, shows_attributes):
        self.reader = os.fdopen(descriptor, 'rb')
        self.writer = os.fdopen(os.dup(descriptor), 'wb')
        self.shows_attributes = shows_attributes
        self.objects = []

    def send(self, message):
        line = json.dumps(message).encode() + b'\n'
        try:
            self.writer.write(line)
            self.writer.flush()
        except OSError:
            raise Ended('') from None

    def receive(self):
        try:
            line = self.reader.readline(LONGEST_MESSAGE)
        except OSError:
            raise Ended('') from None
        if not line.endswith(b'\n'):
            raise Ended('the program wrote too much' if len(line) == LONGEST_MESSAGE else '')
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Ended('the program wrote what is no message')
        return message

    def ask(self, question):
        """Asks the other side, whose own questions are answered meanwhile."""
        self.send(question)
        while True:
            message = self.receive()
            if 'value' in message:
                return self.decode(message['value'])
            if 'changed' in message:
                self.changed = message['changed']
            elif 'error' in message:
                raise self.exception(message)
            elif 'ended' in message:
                raise Ended(str(message['ended']))
            else:
                self.answer(message)

    def call(self, number, arguments, keywords):
        """Calls a function of the other side; lists, dicts and sets that it changes are changed here too."""
        self.changed = []
        result = self.ask({
            'call': number,
            'arguments': [self.encode(argument) for argument in arguments],
            'keywords': {name: self.encode(value) for name, value in keywords.items()},
        })
        for index, value in self.changed:
            argument, value = arguments[index], self.decode(value)
            if isinstance(argument, (list, bytearray)):
                argument[:] = value
            elif isinstance(argument, (dict, set)):
                argument.clear()
                argument.update(value)
        return result

    def answer(self, question):
        """Answers one question of the other side."""
        try:
            if 'call' in question:
                function = self.objects[question['call']]
                sent = question['arguments']
                arguments = [self.decode(argument) for argument in sent]
                keywords = {name: self.decode(value) for name, value in question['keywords'].items()}
                value = self.encode(function(*arguments, **keywords))
                kinds = (list, dict, set, bytearray)
                now = [(i, self.encode(a)) for i, a in enumerate(arguments) if isinstance(a, kinds)]
                changed = [(i, a) for i, a in now if a != sent[i]]
                if changed:
                    self.send({'changed': changed})
            elif 'attribute' in question and self.shows_attributes:
                value = self.encode(getattr(self.objects[question['of']], question['attribute']))
            else:
                raise TypeError('the tests have no such object')
        except Ended:
            raise
        except Exception as error:
            return self.send(described(error))
        self.send({'value': value})

    def exception(self, message):
        """The exception that the other side has raised."""
        kind = getattr(builtins, str(message['error']), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = Exception
        if issubclass(kind, (StopIteration, StopAsyncIteration)):
            kind = RuntimeError  # Or `all(map(f, inputs))` would end there, and hold.
        try:
            error = kind(str(message.get('text')))
        except TypeError:
            error = Exception(str(message.get('text')))
        error.remote_line = str(message.get('line'))
        return error

    def encode(self, value):
        kind = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if isinstance(value, Remote) and value._link is self:
            return {'yours': value._number}
        if isinstance(value, int):
            return int(value) if -(1 << 63) < value < 1 << 63 else {'int': hex(value)}
        for of in (str, float):
            if isinstance(value, of):
                return of(value)
        for of in (bytes, bytearray):
            if isinstance(value, of):
                return {of.__name__: value.hex()}
        if isinstance(value, complex):
            return {'complex': [value.real, value.imag]}
        if isinstance(value, dict):
            return {'dict': [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        for name, (of, _) in SEQUENCES.items():
            if isinstance(value, of):
                return {name: [self.encode(item) for item in value]}
        if isinstance(value, range):
            return {'range': [self.encode(part) for part in (value.start, value.stop, value.step)]}
        if kind.__module__ == TEXTS.get(kind.__name__, ''):
            return {kind.__name__: str(value)}
        if kind.__module__ == 'numpy' and hasattr(value, 'tolist'):
            return self.encode(value.tolist())
        if hasattr(kind, '__next__'):
            items = [item for _, item in zip(range(LONGEST_ITERATOR), value)]
            return {'iterator': [self.encode(item) for item in items]}
        if hasattr(kind, '__index__'):
            return self.encode(value.__index__())
        if not (self.shows_attributes or callable(value)):
            raise TypeError(f'the tests pass {kind.__name__} to the program: only plain values and functions can be passed')
        self.objects.append(value)
        return {'mine': len(self.objects) - 1}

    def decode(self, value):
        if not isinstance(value, dict):
            return value
        (name, content), = value.items()
        if name in SEQUENCES:
            return SEQUENCES[name][1]([self.decode(item) for item in content])
        if name == 'iterator':
            return iter([self.decode(item) for item in content])
        if name == 'dict':
            return {self.decode(key): self.decode(item) for key, item in content}
        if name in TEXTS:
            return getattr(importlib.import_module(TEXTS[name]), name)(content)
        if name == 'int':
            return int(content, 16)
        if name == 'bytes':
            return bytes.fromhex(content)
        if name == 'bytearray':
            return bytearray.fromhex(content)
        if name == 'complex':
            return complex(*content)
        if name == 'range':
            return range(*[self.decode(part) for part in content])
        if name == 'yours':
            return self.objects[content]
        if name == 'mine':
            return Remote(self, content)
        raise TypeError(f'unknown value {name}')


# Type, and how it is made from a list.
SEQUENCES = {
    'list': (list, list),
    'tuple': (tuple, tuple),
    'set': (set, set),
    'frozenset': (frozenset, frozenset),
    'deque': (collections.deque, collections.deque),
    'keys': (type({}.keys()), lambda items: dict.fromkeys(items).keys()),
    'values': (type({}.values()), lambda items: dict(enumerate(items)).values()),
    'items': (type({}.items()), lambda items: dict(items).items()),
}
# Types that their text makes again, and their modules.
TEXTS = {'Decimal': 'decimal', 'Fraction': 'fractions'}


def described(error):
    """An exception as a message: the built-in class nearest to its own, its text, the last line of its traceback."""
    kinds = [kind for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    return {'error': kinds[0].__name__, 'text': str(error), 'line': last_line(error)}


def last_line(error):
    """The last line of an exception's traceback."""
    import traceback  # Only failures need it, and it takes milliseconds.
    line = getattr(error, 'remote_line', None)
    return line or traceback.format_exception_only(type(error), error)[-1].strip()
