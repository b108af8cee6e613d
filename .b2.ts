import {parseNameTable} from './src/dns/name-table.ts'; import {buildZone} from './src/dns/zone.ts'; import {encodeName} from './src/dns/message.ts';
import {FieldWriter} from './src/proto/wire.ts';
const w=new FieldWriter(); 
for(let i=0;i<5000;i++) w.message(1,e=>e.string(1,`svc-${String(i).padStart(5,'0')}.synthetic.svc.cluster.local`).message(2,x=>x.strings(1,[`240.250.${i>>8&255}.${i&255}`]).string(2,'Kubernetes').string(3,`svc-${i}`).string(4,'synthetic')));
const b=w.finish();
for(let k=0;k<6;k++){ let t=performance.now(); const p=parseNameTable(b); const t1=performance.now()-t; t=performance.now(); const g=buildZone(p,{namespace:'shop',clusterDomain:'svc.cluster.local',ttlSeconds:30}); while(!g.next().done); const t2=performance.now()-t; t=performance.now(); for(const n of p.keys()) encodeName(n); console.log('parse',t1.toFixed(1),'zone',t2.toFixed(1),'encode',(performance.now()-t).toFixed(1)); }
