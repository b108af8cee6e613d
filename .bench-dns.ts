import {startDns} from './src/dns/index.ts';
import {Metrics, Readiness, systemClock} from './src/lifecycle/index.ts';
import {silentLogger} from './src/log.ts';
import {FieldWriter} from './src/proto/wire.ts';
const w=new FieldWriter(); const n=Number(process.argv[2]??5000);
for(let i=0;i<n;i++) w.message(1,e=>e.string(1,`svc-${String(i).padStart(5,'0')}.synthetic.svc.cluster.local`).message(2,x=>x.strings(1,[`240.250.${i>>8&255}.${i&255}`]).string(2,'Kubernetes').string(3,`svc-${i}`).string(4,'synthetic')));
const readiness=new Readiness(['dns']);
const t0=performance.now();
const dns=await startDns({config:{mode:'capture',addresses:['127.0.0.1'],port:15999,upstreams:process.argv[3]?[{address:'127.9.9.53',port:53}]:[],resolvConfPath:'/etc/resolv.conf',resolvedConfPath:'/nonexistent',timeoutMs:4000,ttlSeconds:30,meshDomains:undefined,mostInFlight:2000,stateDir:'/tmp/dnsx/state',link:'x'},workload:{namespace:'shop',domain:'shop.svc.cluster.local'},clock:systemClock,random:Math.random,metrics:new Metrics(),log:silentLogger,gate:readiness.gate('dns')});
console.log('start ms',performance.now()-t0);
const b=w.finish(); for(let k=0;k<4;k++){const t1=performance.now(); dns.setNameTable(b); console.log('table ms',performance.now()-t1, b.length);}
process.on('SIGTERM',()=>{console.log(JSON.stringify(dns.status().queries), JSON.stringify(dns.status().upstreams), process.memoryUsage.rss()>>20); process.exit()});
