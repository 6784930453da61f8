"""What all tests share, the notebooks' cells included."""

collect_ignore_glob = ["notebooks/src/*"]  # looking for doctests there would run whole chapters while collecting


def pytest_collection_modifyitems(items):
    """nbval takes outputs without an execution count for those of a cell that was never run, and fails it. The course
    drops the counts on purpose, so that a rebuilt notebook differs only where its content does."""
    for item in items:
        if type(item).__name__ == "IPyNbCell" and item.cell.outputs:
            item.cell.execution_count = 0
