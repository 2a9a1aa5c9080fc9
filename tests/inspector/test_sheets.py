"""Every pixel of a token shows what happens to it; sheets hold all pictures unscaled."""

import numpy as np
import pytest

from bigain.data.images import sheet
from bigain.inspector.board import settings_of
from bigain.inspector.maps import SiteMap
from bigain.inspector.sheets import (
    DESTINATION,
    Subject,
    _caption,
    fitted,
    heat,
    noise_sheet,
    salience_sheet,
    score_sheet,
    token_picture,
    token_sheet,
    token_side,
)  # fmt: skip
from bigain.tokens.grid import Grid

GRID = Grid(2, 4)
SIDE = token_side(GRID)
WHITE = np.full((8, 16, 3), 255, np.uint8)
SUBJECT = Subject(WHITE, ["a", "run"])


def site_map(draws=1, **arrays):
    salience = np.random.default_rng(0).random((draws, 8))
    return SiteMap("block", 2, GRID, np.linspace(10, 900, draws), salience, **arrays)


def tokens(picture):
    """The colour in the middle of every token. `(n, 3)`."""
    return picture[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].reshape(-1, 3).astype(int)


def test_heat_goes_from_dark_to_bright():
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, np.nan])
    colours = tokens(heat(values, GRID))
    assert (np.diff(colours[:7].sum(1)) > 0).all()
    assert colours[7].tolist() == [128] * 3
    assert fitted(np.zeros((512, 512, 3), np.uint8), Grid(64, 64)).shape == (256, 256, 3)
    for constant in (2.5, np.nan):
        assert len(np.unique(heat(np.full(8, constant), GRID).reshape(-1, 3), axis=0)) == 1


def test_sources_are_dim_destinations_are_marked_and_copied_keys_stay_bright():
    # 1 and 4 go into 0, 7 into 6; 2, 3, 5 stay alone.
    colours = tokens(token_picture(WHITE, site_map(leader=np.array([[0, 0, 2, 3, 0, 5, 6, 6]])), 0))
    assert (colours[[2, 3, 5]] == 255).all()
    assert (colours[[1, 4, 7]] < 120).all()
    assert (np.abs(colours[[0, 6]] - DESTINATION) < 45).all()
    site = site_map(copied=np.array([[1, 6]]))
    colours = tokens(token_picture(WHITE, site, 0))
    assert (colours[[1, 6]] == 255).all()
    assert (np.delete(colours, [1, 6], 0) < 120).all()


def test_a_caption_has_the_range_of_kept_tokens_over_the_draws():
    leaders = np.array([[0, 0, 2, 3, 0, 5, 6, 6], [0, 0, 2, 3, 4, 5, 6, 7]])
    assert _caption(site_map(2, leader=leaders)).endswith("2x4 tokens, 8 -> 5 to 7")
    assert _caption(site_map(1, leader=leaders[:1])).endswith("8 -> 5")


def test_a_sheet_has_every_picture_unscaled():
    red = np.full((30, 20, 3), (255, 0, 0), np.uint8)
    rows = [("", [("a very long caption", red)] * 3), ("a class\nwith two lines", [("", red)])]
    image = np.asarray(sheet(["x" * 500, "a class\nwith two lines"], rows))
    assert (image == (255, 0, 0)).all(2).sum() == 4 * 30 * 20


@pytest.mark.parametrize("draws", [1, 8])
def test_tokens_that_never_change_are_drawn_once(draws):
    leader = np.tile([0, 0, 2, 3, 4, 4, 6, 7], (draws, 1))
    once = token_sheet(SUBJECT, [site_map(draws, leader=leader)]).width
    changing = np.stack([np.roll(row, draw) for draw, row in enumerate(leader)])
    assert (token_sheet(SUBJECT, [site_map(draws, leader=changing)]).width > once + SIDE) == (draws > 1)


def test_scores_and_tokens_are_drawn_where_there_are_some():
    scored = site_map(3, scores=np.random.default_rng(1).random((3, 8)))
    assert score_sheet(SUBJECT, [site_map(3)]) is None
    assert token_sheet(SUBJECT, [site_map(3)]) is None
    assert score_sheet(SUBJECT, [site_map(3), scored]).height < score_sheet(SUBJECT, [scored] * 2).height


def test_salience_is_the_mean_of_the_draws():
    site = site_map(3)
    image, expected = np.asarray(salience_sheet(SUBJECT, [site])), heat(site.salience.mean(0), GRID)
    h, w, _ = expected.shape
    places = np.argwhere((image[: 1 - h, : 1 - w] == expected[0, 0]).all(2))
    assert any(np.array_equal(image[y : y + h, x : x + w], expected) for y, x in places)


def test_the_settings_distinguish_a_race_from_stages():
    stages = {"stages": [[0, 1]], "keep": [1], "budget": "cumulative", "race": None, "loss": "l2", "seed": 0}
    race = {**stages, "stages": None, "keep": None, "budget": None, "race": {"error_level": 0.1}}
    run = {"task": "classification", "dataset": {"name": "Shapes", "images": 5}, "model": {"name": "shapes_dit"}}
    run |= {"compressors": [], "environment": {"precision": "32-true"}}
    texts = [settings_of({**run, "protocol": protocol})["protocol"] for protocol in (stages, race)]
    assert texts == ["stages [[0, 1]], keep [1], budget cumulative, loss l2", "race {'error_level': 0.1}, loss l2"]


@pytest.mark.parametrize(
    ("arrays", "share", "caption"),
    [
        # 1 goes into 0 under both noises, 7 into 6 under the second.
        ({"leader": [[0, 0, 2, 3, 4, 5, 6, 7], [0, 0, 2, 3, 4, 5, 6, 6]]}, [0, 1, 0, 0, 0, 0, 0, 0.5], "merged"),
        ({"copied": [[0, 6], [0, 7]]}, [0, 1, 1, 1, 1, 1, 0.5, 0.5], "not a key"),
        ({}, None, None),
    ],
)
def test_how_often_tokens_are_gone(monkeypatch, arrays, share, caption):
    rows = []
    monkeypatch.setattr("bigain.inspector.sheets.sheet", lambda title, tiles, legend: rows.extend([title, *tiles]))
    site = site_map(2, **{name: np.array(values) for name, values in arrays.items()})
    noise_sheet([SUBJECT], [site])
    title, (_, tiles) = rows
    assert title[-1].startswith("timestep 10, 2 noises, no class prompt")
    pictures = dict(tiles)
    salience = site.salience.mean(0)
    assert (pictures[f"salience: {salience.min():.2g} to {salience.max():.2g}"] == heat(salience, GRID)).all()
    if share is None:
        assert len(pictures) == 2
    else:
        assert (pictures[f"{caption}: 0 to 100 %"] == heat(np.array(share), GRID)).all()
