from recipes.harness.pairs import pairs_within


def test_all_pairs_of_one_corpus_and_no_others():
    speakers = ["a/1", "b/1", "a/2", "a/1", "b/1", "c/9", "a/1"]
    wanted = [
        (i, j, speakers[i] == speakers[j])
        for i in range(len(speakers))
        for j in range(i + 1, len(speakers))
        if speakers[i].split("/")[0] == speakers[j].split("/")[0]
    ]
    first, second, same = pairs_within(speakers)
    assert list(zip(first.tolist(), second.tolist(), same.tolist(), strict=True)) == wanted
    assert sum(same) == 4 and len(same) == 7


def test_nothing_of_nothing():
    assert [len(part) for part in pairs_within([])] == [0, 0, 0]
    assert [len(part) for part in pairs_within(["a/1", "b/1"])] == [0, 0, 0]
