"""The application: runs, comparisons and trainings over files, with what they write into a folder."""
