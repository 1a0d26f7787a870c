"""In and out of a picture archive: DICOMweb and DIMSE, resumable, paced, silent about patients (extra ``dicomweb``).

An address says which protocol is spoken: ``https://pacs:8443/dicom-web`` is DICOMweb (QIDO-RS, WADO-RS, STOW-RS),
``dicom://ARCHIVE@pacs:104`` is DIMSE (C-FIND, C-GET, C-STORE) with the archive's application entity title.
"""
