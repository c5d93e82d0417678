"""What every link of a tensor chain must do. Subclass `LinkContract` and give `make`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from keras_private.chain import Link
from keras_private.errors import ConfigurationError, ExposureError

SECRETS = np.array([[123.4375, -87.8125], [45.6875, 101.0625]])
"""Numbers whose digits occur in no shape, bound or address by accident."""


class LinkContract:
    """Inherit as `class TestX(LinkContract)`.

    Attributes:
        kind: Class of the link under test.
        secret: Whether the link itself holds numbers that are not public.
    """

    kind: type[Link]
    secret: bool

    def make(self) -> Link:
        """A link of a chain of SECRETS; any such link of the chain."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def link(cls) -> Link:
        return cls().make()

    def test_it_is_of_the_kind_and_knows_its_shape(self, link):
        assert type(link) is self.kind and link.shape == SECRETS.shape
        assert link.holds_secret is self.secret

    def test_walks_from_above_and_from_below_meet_the_same_links(self, link):
        links = list(link.head.walk())
        assert link in links and links[0] is link.head and link.head.parent is None
        for each in links:
            assert each.head is link.head
            assert all(child.parent is each for child in each.children)
            if each.parent is not None:
                assert sum(child is each for child in each.parent.children) == 1
        up = [link]
        while up[-1].parent is not None:
            up.append(up[-1].parent)
        assert all(upper in links for upper in up) and up[-1] is link.head

    def test_child_is_the_only_one_or_all_of_them(self, link):
        expected = {0: None, 1: link.children[0] if link.children else None}.get(len(link.children), link.children)
        assert link.child is expected

    def test_equality_is_identity(self, link):
        other = type(self)().make()
        assert link == link and link != other and len({link, other, link}) == 2

    def test_text_shows_the_chain_and_no_secret(self, link):
        pages = [str(link), repr(link), f"{link}", format(link), link._repr_html_()]
        for page in pages:
            assert self.kind.__name__ in page
            for each in link.walk():
                assert type(each).__name__ in page
            for word in secret_words(link):
                assert word not in page, f"{word} is shown"

    def test_text_is_the_same_for_other_numbers_of_the_same_form(self, link):
        # Ids and addresses apart, nothing depends on what is secret.
        assert len(str(link).splitlines()) == len(str(type(self)().make()).splitlines())

    def test_nothing_can_be_assigned(self, link):
        for name in ("shape", "_secret", "_children", "_parent", "anything"):
            with pytest.raises(ConfigurationError, match="What to do"):
                setattr(link, name, None)
            with pytest.raises(ConfigurationError):
                delattr(link, name)
        with pytest.raises(TypeError):
            vars(link)

    def test_a_secret_is_not_copied_or_pickled(self, link):
        if not self.secret:
            assert copy.copy(link) is link
            return
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(ExposureError, match="What to do"):
                attempt(link)

    def test_a_chain_with_a_secret_is_not_pickled_from_any_link(self, link):
        if any(each.holds_secret for each in link.head.walk()):
            for attempt in (copy.deepcopy, pickle.dumps):
                with pytest.raises(ExposureError):
                    attempt(link.head)

    def test_it_gives_no_array(self, link):
        for attempt in (np.asarray, np.array, lambda each: np.add(each, 1)):
            with pytest.raises((ExposureError, TypeError)) as raised:
                attempt(link)
            assert not any(word in str(raised.value) for word in secret_words(link))


def secret_words(link: Link) -> set[str]:
    """The digits of everything secret in the chain: the numbers, as integers of the ring, and their shares."""
    words = {f"{abs(number)}"[:5] for number in SECRETS.flat}
    words |= {str(abs(int(number * 2**16))) for number in SECRETS.flat}
    for each in link.head.walk():
        for array in _arrays(each._secret):
            words |= {str(abs(number))[:12] for number in array.reshape(-1).tolist() if abs(number) > 1000}
    return words


def _arrays(secret: Any) -> list[np.ndarray]:
    if secret is None:
        return []
    if isinstance(secret, np.ndarray):
        return [secret]
    return [array for each in secret for array in _arrays(each)]
