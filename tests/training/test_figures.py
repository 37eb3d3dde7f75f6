from lit_wsl.training.figures import main


def test_the_command_says_how_it_is_used(capsys):
    assert main([]) == 2
    assert "figures FOLDER" in capsys.readouterr().err


def test_a_folder_of_others_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
