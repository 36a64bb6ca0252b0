from fusionkit.inference.progress import Bar, show_progress


def test_a_bar_goes_on_from_what_was_found_done():
    for is_quiet in (True, False):
        progress = show_progress(is_quiet)
        assert (progress.disable, progress.console.stderr) == (is_quiet, True)
    progress = show_progress(True)
    bar = Bar(progress, "a title")
    bar.begin(10, 4)
    bar.advance(3)
    (task,) = progress.tasks
    assert (task.description, task.total, task.completed) == ("a title", 10, 7)
