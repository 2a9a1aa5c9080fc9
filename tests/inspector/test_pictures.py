"""Every pixel of a token is what is said of it; sheets hold all tiles that they are given."""

import numpy as np
import pytest

from bigain.inspector.board import settings_of
from bigain.inspector.maps import SiteMap
from bigain.inspector.sheets import Row, Subject, Tile, salience_sheet, score_sheet, sheet, token_sheet
from bigain.inspector.tiles import DESTINATION, LINE, fitted, heat, keys_read, merged, roles, token_side
from bigain.tokens.grid import Grid

GRID = Grid(2, 4)
SIDE = token_side(GRID)
WHITE = np.full((8, 16, 3), 255, np.uint8)


def tokens(picture):
    """The colour in the middle of every token. `(n, 3)`."""
    return picture[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].reshape(-1, 3)


def test_sides_fit_any_map():
    assert token_side(Grid(16, 16)) == 10
    assert token_side(Grid(64, 64)) == 4
    assert fitted(np.zeros((512, 512, 3), np.uint8), Grid(64, 64)).shape == (256, 256, 3)
    assert fitted(WHITE, GRID).shape == (2 * SIDE, 4 * SIDE, 3)


def test_heat_goes_from_dark_to_bright_in_place():
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, np.nan])
    colours = tokens(heat(values, GRID)).astype(int).sum(1)
    assert (np.diff(colours[:7]) > 0).all()
    assert tokens(heat(values, GRID))[7].tolist() == [128] * 3
    flat = tokens(heat(np.full(8, 2.5), GRID))
    assert (flat == flat[0]).all()


def test_tokens_that_go_are_dim_and_destinations_are_marked():
    # 1 and 4 go into 0, 7 into 6; 2, 3, 5 stay alone.
    leader = np.array([0, 0, 2, 3, 0, 5, 6, 6])
    source, destination = roles(leader)
    assert np.flatnonzero(source).tolist() == [1, 4, 7]
    assert np.flatnonzero(destination).tolist() == [0, 6]
    found = tokens(merged(WHITE, leader, GRID)).astype(int)
    assert (found[[2, 3, 5]] == 255).all()
    assert (found[[1, 4, 7]] < 120).all()
    assert (np.abs(found[[0, 6]] - DESTINATION) < 45).all()


def test_keys_that_are_copies_stay_bright():
    found = tokens(keys_read(WHITE, np.zeros(8, np.int32), np.array([1, 6]), GRID)).astype(int)
    assert (found[[1, 6]] == 255).all()
    assert (np.delete(found, [1, 6], 0) < 120).all()


def test_lines_are_where_the_nearest_key_changes():
    black = np.zeros((8, 16, 3), np.uint8)
    drawn = keys_read(black, np.array([0, 0, 1, 1, 0, 0, 1, 1]), None, GRID)
    lines = (drawn == LINE).all(2)
    assert lines[:, 2 * SIDE].all()
    assert lines.sum() == 2 * SIDE
    assert not keys_read(black, None, None, GRID).any()


def test_a_sheet_has_every_tile_unscaled():
    red = np.full((30, 20, 3), (255, 0, 0), np.uint8)
    title = ["x" * 500, "a class\nof two lines"]
    rows = [Row("", [Tile(red, "a very long caption")] * 3), Row("a class\nof two lines", [Tile(red, "")])]
    image = np.asarray(sheet(title, rows))
    assert (image == (255, 0, 0)).all(2).sum() == 4 * 30 * 20


def site_map(draws=3, **arrays):
    leader = np.tile(np.array([0, 0, 2, 3, 4, 4, 6, 7]), (draws, 1))
    salience = np.random.default_rng(0).random((draws, 8))
    return SiteMap("block", 2, GRID, np.linspace(10, 900, draws), salience, **{"leader": leader, **arrays})


def width(image):
    return image.size[0]


def test_what_is_the_same_at_every_timestep_is_shown_once():
    subject = Subject(WHITE, ["a"])
    same, changing = site_map(8), site_map(8)
    changing.leader[1] = [1, 1, 2, 3, 4, 4, 6, 7]
    assert width(token_sheet(subject, [changing])) > width(token_sheet(subject, [same])) + SIDE


def test_scores_are_drawn_where_there_are_some():
    subject = Subject(WHITE, ["a"])
    assert score_sheet(subject, [site_map()]) is None
    scores = np.random.default_rng(1).random((3, 8))
    one = score_sheet(subject, [site_map(), site_map(scores=scores)])
    two = score_sheet(subject, [site_map(scores=scores)] * 2)
    assert one.size[1] < two.size[1]


def test_salience_is_the_mean_of_the_draws():
    one = site_map()
    image = np.asarray(salience_sheet([Subject(WHITE, ["a"])], [[one]]))
    wanted = heat(one.salience.mean(0), GRID)
    h, w, _ = wanted.shape
    places = np.argwhere((image[: 1 - h, : 1 - w] == wanted[0, 0]).all(2))
    assert any(np.array_equal(image[y : y + h, x : x + w], wanted) for y, x in places)


@pytest.mark.parametrize("draws", [1, 8])
def test_any_number_of_draws_can_be_drawn(draws):
    leader = np.stack([np.array([0, 0, 2, 3, 4, 5, 6, 7]) if i % 2 else np.arange(8) for i in range(draws)])
    assert token_sheet(Subject(WHITE, ["a"]), [site_map(draws, leader=leader)]).size[0] > 100


def test_a_race_is_told_from_stages_among_the_settings():
    stages = {"stages": [[0, 1]], "keep": [1], "budget": "cumulative", "race": None, "loss": "l2", "seed": 0}
    race = {**stages, "stages": None, "keep": None, "budget": None, "race": {"error_level": 0.1}}
    about = {"task": "classification", "dataset": {"name": "Shapes", "images": 5}, "model": {"name": "shapes_dit"}}
    about |= {"compressors": [], "environment": {"precision": "32-true"}}
    told = [settings_of({**about, "protocol": protocol})["protocol"] for protocol in (stages, race)]
    assert told == ["stages [[0, 1]], keep [1], budget cumulative, loss l2", "race {'error_level': 0.1}, loss l2"]
