"""Counter-based randomness, against SplitMix64 in Python integers and pinned numbers."""

import hashlib
import math

import pytest
import torch

from bigain.tokens.randomness import (
    mix,
    random_bits,
    random_integers,
    random_normal,
    random_uniform,
    stable_hash,
)

WORD = 2**64
KEYS = [0, 1, -1, 2, 1234567, -(2**63), 2**63 - 1, 0x123456789ABCDEF]

DRAWS = {
    "bits": lambda keys: random_bits(keys, 7),
    "integers": lambda keys: random_integers(keys, 7, 5),
    "uniform": lambda keys: random_uniform(keys, 7),
    "normal": lambda keys: random_normal(keys, 7),
    "mix": lambda keys: mix(keys, 3, keys),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


def splitmix(state, count):
    """Outputs of the published generator, unsigned."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        outputs.append(z ^ (z >> 31))
    return outputs


def mix_by_loop(*keys):
    state = splitmix(keys[0] % WORD, 1)[0]
    for key in keys[1:]:
        state = splitmix(state ^ key % WORD, 1)[0]
    return state - WORD if state >= WORD // 2 else state


def test_reference_is_splitmix64():
    """The widely published first outputs for seed 1234567."""
    assert splitmix(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_bits_integers_and_uniform_numbers_are_the_top_of_splitmix64():
    keys, words = torch.tensor(KEYS), [splitmix(key % WORD, 9) for key in KEYS]
    bits, uniform = random_bits(keys, 9), random_uniform(keys, 9)
    assert (bits.dtype, uniform.dtype) == (torch.int64, torch.float32)
    assert bits.tolist() == [[z >> 1 for z in row] for row in words]
    # 24 bits, so every value is an exact float32.
    assert uniform.tolist() == [[(z >> 40) / 2**24 for z in row] for row in words]
    for high in (1, 2, 4, 6, 1000):
        assert random_integers(keys, 9, high).tolist() == [[(z >> 1) % high for z in row] for row in words]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_normal(n):
    """Box-Muller: the first half of the draws gives radii, the second half angles."""
    pairs = (n + 1) // 2
    expected = []
    for key in KEYS:
        u = [((z >> 33) + 0.5) / 2**31 for z in splitmix(key % WORD, 2 * pairs)]
        polar = [(math.sqrt(-2 * math.log(a)), 2 * math.pi * b) for a, b in zip(u[:pairs], u[pairs:], strict=True)]
        expected.append(([r * math.cos(v) for r, v in polar] + [r * math.sin(v) for r, v in polar])[:n])
    actual = random_normal(torch.tensor(KEYS), n)
    assert actual.dtype == torch.float32
    assert actual.shape == (len(KEYS), n)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("others", [(), (0,), (5,), (-7, 2**63 - 1), (1, 2, 3), (-(2**62),)])
def test_mix_of_integers(others):
    actual = mix(torch.tensor(KEYS), *others)
    assert actual.dtype == torch.int64
    assert actual.tolist() == [mix_by_loop(key, *others) for key in KEYS]


def test_mix_broadcasts_tensors():
    rows, columns = torch.tensor([[3], [4]]), torch.tensor([10, 11, -12])
    assert mix(rows, columns, 5).tolist() == [[mix_by_loop(a, b, 5) for b in (10, 11, -12)] for a in (3, 4)]
    assert mix(rows, torch.tensor(5)).tolist() == mix(rows, 5).tolist()


def test_golden_numbers():
    """Pinned: changing any of these changes every published random result."""
    keys = torch.tensor([0, 42])
    assert mix(keys, 1, 2).tolist() == [6768782832058643234, -853829980155589614]
    assert random_bits(keys, 3).tolist() == [
        [8147104208329303767, 3980143261097177850, 243808509735772839],
        [6839728766377637706, 1474913046063446145, 2569641874231381929],
    ]
    assert random_integers(keys, 8, 4).tolist() == [[3, 2, 3, 2, 1, 1, 0, 2], [2, 1, 1, 2, 1, 3, 2, 2]]
    uniform = [[14819496, 7239838, 443485], [12441394, 2682851, 4674151]]
    assert (random_uniform(keys, 3) * 2**24).tolist() == uniform
    normal = [[0.491297811, 1.274836898, 0.082357496], [-0.138219163, -1.068184853, 0.760842085]]
    torch.testing.assert_close(random_normal(keys, 3), torch.tensor(normal), rtol=1e-6, atol=1e-6)


@every_draw
def test_a_row_does_not_depend_on_its_batch(draw):
    """Same key, same numbers: alone, repeated, permuted, in another shape."""
    keys = mix(torch.arange(12))
    together = draw(keys)
    order = torch.tensor([5, 0, 11, 3, 3, 8, 1])
    assert torch.equal(draw(keys[order]), together[order])
    assert torch.equal(torch.cat([draw(keys[i : i + 1]) for i in range(12)]), together)
    assert torch.equal(draw(keys.view(3, 4)).flatten(0, 1), together)
    assert torch.equal(draw(keys[4]), together[4])
    assert torch.equal(draw(keys), together)


@pytest.mark.parametrize("text", ["", "a", "n02123045_17.JPEG", "Bär/猫 7", "x" * 1000])
def test_stable_hash_is_blake2b(text):
    """The upper 63 bits of the 8-byte digest, big-endian."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
    assert stable_hash(text) == int(digest, 16) // 2
    assert 0 <= stable_hash(text) < 2**63
