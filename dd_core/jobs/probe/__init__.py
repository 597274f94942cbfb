"""The resource probe as a job: arms timed with one, two, ... workers side by side."""
