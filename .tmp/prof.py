import re,time
def split(text):
    out=[];cur='';i=0;n=len(text)
    while i<n:
        m=re.match(r"--[^\n]*\n|'(?:[^']|'')*'|\$\$.*?\$\$|.",text[i:],re.S)
        t=m.group(0); i+=len(t)
        if t==';': out.append(cur); cur=''
        else: cur+=t
    return [s for s in out if re.sub(r"--[^\n]*\n","",s).strip()]
