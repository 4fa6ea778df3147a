"""Names that the generated questions draw from. Drugs and firms are invented."""

from __future__ import annotations


def _names(listed: str) -> tuple[str, ...]:
    return tuple(listed.split(","))


PEOPLE = _names(
    "Ada,Amir,Anna,Bela,Bruno,Clara,Dana,David,Elena,Emil,Farah,Felix,Greta,Hana,Hugo,Ida,Ivan,Jonah,Kira,Leo,Lina,"
    "Malik,Maria,Mona,Nadia,Nina,Noor,Omar,Oscar,Paula,Petra,Rafael,Rosa,Samir,Sara,Tara,Tomo,Vera,Yara,Zoe"
)
DRUGS = _names(
    "Arvelin,Bromexa,Cardovan,Deltrin,Elvomax,Fenadol,Glivora,Hexatin,Ivonal,Jantrex,Kelvorin,Lumadin,Mirovan,"
    "Nexalor,Orvadin,Pentorel,Quinavex,Rovatol,Selmadin,Tavorel,Ultrazin,Velorin,Wexalon,Zyvoran"
)
FIRMS = _names(
    "Aldora,Belmar,Corvex,Dunmore,Elstan,Farrow,Gralto,Hollin,Inverk,Jasmor,Kestrel,Lormont,Medway,Norvik,Ostara,"
    "Palmer,Quorin,Redfern,Solvay,Tarling,Umbria,Varden,Westrum,Yelverton"
)
STATES = _names(
    "Alabama,Alaska,Arizona,Colorado,Delaware,Florida,Georgia,Hawaii,Idaho,Illinois,Iowa,Kansas,Maine,Maryland,"
    "Michigan,Montana,Nebraska,Nevada,New Jersey,New York,North Dakota,Ohio,Oregon,Texas,Utah,Vermont,Virginia,Wyoming"
)
CLAIMS = _names(
    "negligence,trespass,defamation,fraud,medical malpractice,patent infringement,wrongful eviction,breach of contract,"
    "unpaid wages,false advertising"
)
