"""Pictures and video with what a task's network should find in them: one file per way of laying such data out on disk,
all giving `data.TaskData`."""
