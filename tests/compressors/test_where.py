"""Which sites a compressor acts on."""

import pytest
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from models import DIT_XL_2_512, SD_2_0, on_meta

from bigain.backbones.sites import layout_of
from bigain.compressors import Where


@pytest.fixture(scope="module")
def layouts():
    return {
        "sd2": layout_of(on_meta(UNet2DConditionModel, SD_2_0)),
        "dit": layout_of(on_meta(DiTTransformer2DModel, DIT_XL_2_512)),
    }


@pytest.mark.parametrize(
    ("network", "where", "expected"),
    [
        ("sd2", Where(part="down"), [0, 1]),
        ("sd2", Where(part="up"), [13, 14, 15]),
        ("sd2", Where(max_stride=2), [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]),
        ("sd2", Where(max_stride=8), list(range(16))),
        ("sd2", Where(min_stride=2, max_stride=2), [2, 3, 10, 11, 12]),
        ("sd2", Where(min_stride=2, max_stride=8, part="up"), [7, 8, 9, 10, 11, 12]),
        ("sd2", Where(blocks=(15, 0, 0)), [0, 15]),
        ("sd2", Where(blocks=[0, 6], max_stride=8, part="mid"), [6]),
        ("dit", Where(), list(range(28))),
        ("dit", Where(blocks="first_12"), list(range(12))),
        ("dit", Where(blocks="released"), [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]),
    ],
)
def test_selectors(network, where, expected, layouts):
    assert [site.index for site in where.select(layouts[network])] == expected


def test_ranges_of_dit_blocks_are_refused_on_a_unet(layouts):
    with pytest.raises(ValueError, match="blocks: released is a range of DiT blocks; for UNet2DConditionModel give"):
        Where(blocks="released").select(layouts["sd2"])


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"min_stride": 0}, "1 <= min_stride <= max_stride, got 0 and 1"),
        ({"min_stride": 4, "max_stride": 2}, "got 4 and 2"),
        ({"part": "encoder"}, "part must be down, mid, up or null, not 'encoder'"),
        ({"blocks": "last_3"}, "first_12, released, not 'last_3'"),
    ],
)
def test_impossible_selectors(kwargs, names):
    with pytest.raises(ValueError, match=names):
        Where(**kwargs)
