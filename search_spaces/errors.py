"""The two ways a job can end early, each with one sentence for the person who runs it."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral

MOST_LETTERS = 600
"""Of a sentence: nobody reads more, whatever a file puts into it."""


class InputError(ValueError):
    """Something the user gave is wrong: the sentence names the thing, the value and the next step (exit code 2)."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(shortened(flowing(sentence)))


class JobError(RuntimeError):
    """The input was fine but the job could not go on, such as a NaN loss or a full disk (exit code 1)."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(shortened(flowing(sentence)))


class ToldElsewhere(JobError):
    """Ends one of several processes of a job whose first one says why."""


def flowing(sentence: str) -> str:
    """The sentence with one mark where it goes on behind a question.

    >>> flowing("no key 'epoch'; did you mean 'epochs'?; see the page")
    "no key 'epoch'; did you mean 'epochs'? see the page"
    """
    return sentence.replace("?; ", "? ")


def one_line(error: BaseException) -> str:
    """Put an exception of somebody else's code on one line, with its type.

    >>> one_line(KeyError("a")), one_line(ZeroDivisionError())
    ("KeyError: 'a'", 'ZeroDivisionError')
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def told_as(sentence: Callable[[str], str]) -> Iterator[None]:
    """Tell what the user's own code raises inside in a sentence; too little memory is no fault of it.

    >>> with told_as(lambda reason: f"cost 'mine' failed: {reason}"):
    ...     1 / 0
    Traceback (most recent call last):
    search_spaces.errors.InputError: cost 'mine' failed: ZeroDivisionError: division by zero
    """
    try:
        yield
    except (InputError, JobError):
        raise
    except (Exception, SystemExit) as error:  # it may fail in any way, and leave, too
        if out_of_memory(error):
            raise
        raise InputError(sentence(one_line(error))) from error


_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: BaseException) -> BaseException | None:
    """The error that says that some memory is too small: this one, or what it was raised from.

    PyTorch has a class for it, libraries and some devices words.
    """
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    words = isinstance(error, RuntimeError) and not isinstance(error, JobError) and _NO_MEMORY.search(str(error))
    if own or words or error.__cause__ is None:
        return error if own or words else None
    return out_of_memory(error.__cause__)


def unreadable(error: OSError) -> str:
    """Say why a file that was named could not be read; where it is a folder, what to do about it.

    >>> unreadable(IsADirectoryError()), unreadable(FileNotFoundError(2, "No such file or directory"))
    ('it is a folder; name a file', 'No such file or directory')
    """
    return "it is a folder; name a file" if isinstance(error, IsADirectoryError) else error.strerror or str(error)


def quoted(path: object) -> str:
    """A path as a shell reads it, for commands that a sentence advises: they are copied.

    >>> quoted("runs/digits"), quoted("runs/my run")
    ('runs/digits', "'runs/my run'")
    """
    return shlex.quote(str(path))


def printable(text: str) -> str:
    r"""Return the text on one line, whatever a user's names, keys and values put into it.

    >>> printable("there is no run at a\nb")
    'there is no run at a�b'
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def first_sentence(error: BaseException) -> str:
    """The first sentence of an exception, without its full stop.

    >>> first_sentence(RuntimeError("put is not deterministic. You can turn it off. Or ask."))
    'put is not deterministic'
    """
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")


def shortened(sentence: str, most: int = MOST_LETTERS) -> str:
    """Return the sentence with its middle left out where it is longer than anybody reads.

    >>> shortened("aaaaaaaabb", most=9)
    'aa ... bb'
    """
    half = (most - len(" ... ")) // 2
    return sentence if len(sentence) <= most else f"{sentence[:half]} ... {sentence[-half:]}"


def with_article(name: str) -> str:
    """A type's name after its article; a leading u sounds as in uint.

    >>> with_article("int64"), with_article("float"), with_article("UNet")
    ('an int64', 'a float', 'a UNet')
    """
    return f"{'an' if name[:1].lower() in set('aeio') else 'a'} {name}"


def kind_of(value: object) -> str:
    """What a value is, in words.

    >>> kind_of(3), kind_of("x")
    ('an int', 'a str')
    """
    return with_article(type(value).__name__)


def check_type(value: object, kind: type | tuple[type, ...], what: str, hint: str) -> None:
    """Raise :class:`InputError` unless ``value`` is a ``kind``; the hint says how to get one."""
    if not isinstance(value, kind):
        raise InputError(f"{what} cannot be {kind_of(value)}; {hint}")


def check_whole(value: object, what: str, least: int | None = None) -> None:
    """Raise :class:`InputError` unless ``value`` is a whole number, Python's or numpy's, of ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and int(value) < least):
        from_on = "" if least is None else f" from {least} on"
        raise InputError(f"{what} = {value!r}: give a whole number{from_on}")


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the choice nearest to ``value``, or an empty string.

    >>> nearest("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    >>> nearest("zzz", ["epochs", "seed"])
    ''
    """
    found = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""
