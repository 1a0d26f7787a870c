"""Out again: masks as NIfTI and DICOM SEG on the source's own voxels, measurements as DICOM SR."""
