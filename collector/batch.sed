# How many lines of a file go on together, in pkg/stanza/fileconsumer/internal/reader: a constant there, 100 of whatever
# length. See docs/decisions/0019.
#
# factory.go:
s/^\tDefaultMaxBatchSize = 100$/\tDefaultMaxBatchSize = 1000/
# reader.go: and no more than half a MiB, or one line. A thousand lines may be a GiB, which no memory limit lets pass.
s/^\t\tif r.maxBatchSize > 0 && numTokensBatched >= r.maxBatchSize {$/\t\tif numTokensBatched >= r.maxBatchSize || s.Pos()-tokenOffsets[0] >= 524288 {/
